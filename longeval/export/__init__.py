"""Export: a model with one method's frequencies, in the forms that stock engines read without longeval."""
