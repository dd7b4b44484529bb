package caveats

import (
	"errors"
	"fmt"
)

// ErrCondition is in every error of Validate, Complete and the builders: the
// condition is not one that a verifier could accept.
var ErrCondition = errors.New("invalid caveat")

// ErrResource is returned for text that is no resource.
var ErrResource = errors.New("invalid resource")

// ErrArguments is returned for call arguments that cannot be read without doubt.
var ErrArguments = errors.New("invalid arguments")

// ErrMessage is returned for a call that a request caveat cannot name.
var ErrMessage = errors.New("request cannot be bound")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCondition, fmt.Sprintf(format, args...))
}
