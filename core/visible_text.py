"""Which characters a screen hides or obeys instead of showing them."""

import re

# Characters that show nothing, or change how their neighbours are shown: C0 and C1 controls (ANSI escapes start with
# one), bidirectional controls (Unicode Standard Annex 9, section 2), zero-width and other default-ignorable characters
# (Unicode Character Database, Default_Ignorable_Code_Point), line separators, lone surrogates. Tab and newline stay.
HIDDEN_RANGES: tuple[tuple[int, int], ...] = (
    (0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xD800, 0xDFFF), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF9, 0xFFFB), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
HIDDEN = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in HIDDEN_RANGES) + "]")
