"""ABX: are two tokens of one phone nearer to each other than to a token of another phone? `items` names the tokens,
`task` plans the comparisons, `score` makes them."""
