"""Assembly only: adapters, the core and heads put together into named models."""
