"""`probe` and `plan`: what hosts can do, measured, and what goes where on them."""
