"""The founding systems' own API: rows of chats instead of tensors, text instead of tokens, no sessions."""
