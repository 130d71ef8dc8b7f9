"""The jobs that networks do: loss, metrics, training, evaluation, prediction, drawing. One file per task."""
