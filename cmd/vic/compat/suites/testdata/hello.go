// Command hello says what the image hello-world says.
package main

import "fmt"

func main() {
	fmt.Println("\nHello from Docker!\nThis message shows that your installation appears to be working correctly.")
}
