"""Files that tests are fed with, made by code: nothing binary is kept in the repository."""
