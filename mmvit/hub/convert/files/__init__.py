"""Reading weight files without trusting them: sizes and types are checked before anything is made."""
