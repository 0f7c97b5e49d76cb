"""Console programs: small mains over the library, one clear line for every mistake."""
