"""The paper's tables, figures and claims, counted again from the networks here and in other packages."""
