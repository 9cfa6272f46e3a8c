"""Marco-o1's reasoning as a tree search: trees and text, no tensor and no model."""
