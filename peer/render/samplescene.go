package render

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// SampleScene makes a small scene in dir, with the Blender at the path blender:
// shot.blend of frames 1 to 24 at 320×180, which links library/props.blend and
// uses textures/meadow.png. A frame takes well under a second on one core. It
// answers the path of shot.blend.
func SampleScene(ctx context.Context, blender, dir string) (blend string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", dir, err)
	}
	tmp, err := os.MkdirTemp("", "vizpeer-")
	if err != nil {
		return "", fmt.Errorf("make a temporary folder: %w", err)
	}
	defer os.RemoveAll(tmp)
	for _, sub := range []string{"library", "textures"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", fmt.Errorf("make the sample scene's folder: %w", err)
		}
	}
	text, err := scripts.ReadFile("samplescene.py")
	if err != nil {
		return "", err
	}
	script := filepath.Join(tmp, "samplescene.py")
	if err := os.WriteFile(script, text, 0o600); err != nil {
		return "", fmt.Errorf("write to the temporary folder: %w", err)
	}
	if _, err := runScript(ctx, blender, tmp, script, []string{dir}); err != nil {
		return "", fmt.Errorf("make the sample scene: %w", err)
	}
	return filepath.Join(dir, "shot.blend"), nil
}
