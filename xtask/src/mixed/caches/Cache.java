// A Java program with a bounded cache: ENTRIES values, full after SECONDS.

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SplittableRandom;

public final class Cache {
    private static final int PAUSE_MS = 20;

    public static void main(String[] arguments) throws InterruptedException {
        int entries = Integer.parseInt(arguments[0]);
        double seconds = Double.parseDouble(arguments[1]);
        Map<Long, byte[]> cache = new LinkedHashMap<>() {
            @Override
            protected boolean removeEldestEntry(Map.Entry<Long, byte[]> eldest) {
                return size() > entries;
            }
        };
        SplittableRandom random = new SplittableRandom();
        int batch = Math.max(1, (int) Math.round(entries * PAUSE_MS / 1000.0 / seconds));
        System.out.println("READY");
        long next = 0;
        while (true) {
            for (int i = 0; i < batch; i++) {
                byte[] value = new byte[random.nextInt(200, 3000)];
                random.nextBytes(value);
                cache.put(next++, value);
            }
            StringBuilder garbage = new StringBuilder();
            for (int i = 0; i < 2000; i++) {
                garbage.append(i);
            }
            if (garbage.length() == 0) {
                return;
            }
            Thread.sleep(PAUSE_MS);
        }
    }
}
