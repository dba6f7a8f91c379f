"""Files of any encoding, with prefixes, in tables or records, come in; clean, numbered lines go out."""
