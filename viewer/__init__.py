"""The page that people look at: results -> tables, pictures and videos in a browser. It runs no model of its own."""
