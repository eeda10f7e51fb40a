// Command swagger holds replies of an engine against Docker's own description of its API. Arguments: the
// description, YAML. Standard input: JSON, an array of {path, as, body}, with the path in the description, the
// name of the check, and the reply to GET. It prints a line for each: the name, a tab, and ok or what is wrong.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/spec"
	"github.com/go-openapi/strfmt"
	"github.com/go-openapi/validate"
)

func main() {
	doc, err := loads.Spec(os.Args[1])
	if err == nil {
		doc, err = doc.Expanded(&spec.ExpandOptions{RelativeBase: os.Args[1]})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var replies []struct {
		Path, As string
		Body     any
	}
	dec := json.NewDecoder(os.Stdin)
	dec.UseNumber()
	if err := dec.Decode(&replies); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, r := range replies {
		item, ok := doc.Spec().Paths.Paths[r.Path]
		if !ok || item.Get == nil || item.Get.Responses.StatusCodeResponses[200].Schema == nil {
			fmt.Printf("%s\tnot described\n", r.As)
			continue
		}
		err := validate.AgainstSchema(item.Get.Responses.StatusCodeResponses[200].Schema, withoutNulls(r.Body), strfmt.Default)
		result := "ok"
		if err != nil {
			result = strings.Join(strings.Fields(err.Error()), " ")
		}
		fmt.Printf("%s\t%s\n", r.As, result)
	}
}

// withoutNulls takes keys without a value out: dockerd sends them, too.
func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if x == nil {
				delete(v, k)
			} else {
				v[k] = withoutNulls(x)
			}
		}
	case []any:
		for i, x := range v {
			v[i] = withoutNulls(x)
		}
	}
	return v
}
