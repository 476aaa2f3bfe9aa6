"""One file per question; each case runs its variants and answers with results."""
