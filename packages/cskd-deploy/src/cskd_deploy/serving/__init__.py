"""What a model server needs beside an exported file."""
