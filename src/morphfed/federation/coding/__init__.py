"""How uploads and downloads are written in fewer bytes: one code a file, and what is coded against what."""
