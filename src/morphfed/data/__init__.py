"""What sites bring: manifest, ontology, sources, splits, quality checks, cache, augmentation."""
