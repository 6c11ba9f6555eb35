"""The computing: video -> frames -> faces -> emotions -> tables, drawings and summaries."""
