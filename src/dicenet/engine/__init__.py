"""What every training needs: schedules, checkpoints and resume, progress, the run folder."""
