package cli

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bulkhead-net/bulkhead/api"
)

// flagError says in our own words what is wrong with a flag: the parser's name functions of Go.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		text = fmt.Sprintf("--%s needs a value: %s", missing.GetFlag().Name, missing.GetFlag().Usage)
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		dashes := "--"
		if unknown.GetSpecifiedShortnames() != "" {
			dashes = "-"
		}
		text = fmt.Sprintf("%s%s is not a flag of %s", dashes, unknown.GetSpecifiedName(), cmd.CommandPath())
	}
	wrong, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return api.Errorf(api.KindInvalid, "%s", text).Hint("%s --help", cmd.CommandPath())
	}
	flag := wrong.GetFlag()
	if number, ok := errors.AsType[*strconv.NumError](err); ok && errors.Is(number, strconv.ErrRange) {
		return api.Errorf(api.KindInvalid, "--%s: %s is out of range", flag.Name, wrong.GetValue()).Hint("%s --help", cmd.CommandPath())
	}
	if wanted := wantedValue(flag.Value.Type()); wanted != "" {
		return api.Errorf(api.KindInvalid, "--%s: %q is not %s", flag.Name, wrong.GetValue(), wanted).Hint("%s --help", cmd.CommandPath())
	}
	return api.Errorf(api.KindInvalid, "--%s: %w", flag.Name, errors.Unwrap(wrong)).Hint("%s --help", cmd.CommandPath())
}

// wantedValue names the values of a flag whose parser is not ours.
func wantedValue(kind string) string {
	switch kind {
	case "int", "int64", "uint64":
		return "a whole number"
	case "uint16":
		return "a whole number from 0 to 65535"
	case "float64":
		return "a number"
	case "bool":
		return "true or false"
	case "duration":
		return "a time like 30s or 2m"
	}
	return ""
}
