package vsphere

import (
	"fmt"
	"io/fs"
	"strings"
)

// ParseLocation takes DATASTORE[/FOLDER] apart. Folder is the one that is meant if none is named; "" is none.
func ParseLocation(text, folder string) (datastore, at string, err error) {
	datastore, at, found := strings.Cut(text, "/")
	if at = strings.TrimSuffix(at, "/"); !found {
		at = folder
	}
	if datastore == "" || at == "." || !fs.ValidPath(at) {
		return "", "", fmt.Errorf("%q is no folder of a datastore: want DATASTORE/FOLDER", text)
	}
	return datastore, at, nil
}
