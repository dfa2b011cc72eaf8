"""From a recipe to a model file: pruned, trained and quantized, with a head apart where one is asked for."""
