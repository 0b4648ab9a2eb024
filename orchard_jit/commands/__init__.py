"""The work behind each verb of the command line. Nothing else in the package may import it."""

import warnings

# Some parts of PyTorch warn where there is no NumPy, which nothing here needs.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
