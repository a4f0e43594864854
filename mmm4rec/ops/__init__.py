"""Operations on tensors, each with a slow oracle or a plain formulation beside it."""
