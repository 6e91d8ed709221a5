"""The built book and its picture in a browser."""
