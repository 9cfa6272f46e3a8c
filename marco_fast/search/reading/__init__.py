"""How an answer is read: its plain text, the numbers in it, and what its question asks for."""
