// Broken is in vic's place in appliances that do not come up.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "broken: it cannot start")
	os.Exit(5)
}
