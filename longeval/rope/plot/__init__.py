"""The page of plots of `longeval rope --plot`."""
