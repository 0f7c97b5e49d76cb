"""The one transformer: tokens in, tokens out, blind to where the tokens came from."""
