"""Third-party models behind ferflow's protocols, and the emotion models trained here."""
