"""From bytes to tables of documents: from any row on, and again where reading fails."""
