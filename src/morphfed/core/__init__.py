"""Types, errors, configuration base, seeding, files and progress: what every floor stands on."""
