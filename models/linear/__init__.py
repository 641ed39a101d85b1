"""Linear regression of tables of numbers, beside least squares in closed form."""
