"""Text of messages: numbers and names, hidden secrets, escaped control characters."""
