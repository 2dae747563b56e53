"""Where the files of demonstrations lie: folders, object stores, the cache of the Hugging Face hub."""
