"""What is done with a finished map: masks, corrected FSC, sharpening, local resolution, fitting, pictures."""
