"""A report as one HTML page: charts, tables that sort and filter, and views of tokens and samples."""
