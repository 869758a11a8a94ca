"""Export: writes a model with one method's frequencies in formats that stock engines read without longeval."""
