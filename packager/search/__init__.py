"""The search for the smallest and fastest candidate that keeps the budget."""
