"""Understanding the user's data: where it lies, which format it has, what is wrong with it, what is held out."""
