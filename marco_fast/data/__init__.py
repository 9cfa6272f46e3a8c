"""Fine-tuning data: questions from a file, searched, filtered and written as chats."""
