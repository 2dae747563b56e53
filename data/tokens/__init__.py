"""One vocabulary: text, image codes, actions and states as token ids."""
