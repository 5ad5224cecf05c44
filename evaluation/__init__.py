"""What a trained model does, and why: numbers and pictures from models, images, labels and names."""
