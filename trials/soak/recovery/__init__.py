"""How long streams stand still at a fault: one fault after the other, under a steady load, measured by its clients."""
