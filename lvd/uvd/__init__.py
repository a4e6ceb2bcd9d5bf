"""Import the files of the paper's public code, py85252876/UVD."""
