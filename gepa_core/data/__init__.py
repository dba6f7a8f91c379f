"""Text, tokenizers and shards. Texts or a hub come in; folders of shards, and token streams, go out.

`shards.open_shards` and `folder.open_folder` read, `prepare`, `corpus` and `fetch` make, `inspect` checks.
"""
