"""What archived answers still tell: the store told anew, and how the fields of an API drift."""
