"""How anything is measured, recorded, tabulated, drawn and compared; imports nothing from its neighbours."""
